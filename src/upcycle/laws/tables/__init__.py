"""Tables of losses, read and checked."""
