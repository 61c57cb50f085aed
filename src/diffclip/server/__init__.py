"""A page on this machine that finds pictures of an index and shows where the model looks: `diffclip serve`."""
