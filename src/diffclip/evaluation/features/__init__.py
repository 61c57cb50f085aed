"""Features of images and texts, kept on disk, and what is learned from them."""
