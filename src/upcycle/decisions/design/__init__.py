"""`upcycle design`: what a planned sweep would tell."""
