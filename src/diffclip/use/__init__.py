"""Use a model on pictures of one's own: labels and features of whatever images there are."""
