"""Errors of data sets."""


class DataError(ValueError):
    """A data set, or one file of it, cannot be used. The message names the file and says what to do."""
