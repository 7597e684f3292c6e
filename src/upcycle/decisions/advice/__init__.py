"""`upcycle advise`: upcycle or train from scratch."""
