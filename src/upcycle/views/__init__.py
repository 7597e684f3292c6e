"""What `upcycle plan` and `upcycle status` print."""
