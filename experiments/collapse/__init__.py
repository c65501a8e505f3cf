"""Which objective keeps the prior alive, and what it costs."""
