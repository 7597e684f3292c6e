"""The one exception that a user of upcycle is meant to read."""


class UserError(ValueError):
    """Bad input, found before any work starts: names the key, file or value, and the mend.

    The command line prints its message alone, without a traceback, and exits 2.
    """
