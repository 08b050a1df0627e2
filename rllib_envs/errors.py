"""The error for bad user input: it says what is wrong, where, and what is allowed."""


class InputError(ValueError):
    """Bad input from the user: a file, a field, an option.

    The message names the field, its value, what is allowed and where it was read. The command line prints it
    on one line and exits with code 2; library callers can treat it as a ``ValueError``.
    """
