"""Looking at results: a page about a run or dataset, pictures of single images, and an audit of stored values."""
