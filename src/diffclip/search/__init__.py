"""Search in pictures of one's own: an index in LanceDB, kept up with its folders, and questions to it."""
