"""One file a kind of trouble; every detector takes a history and limits, and gives findings."""
