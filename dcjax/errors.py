"""What a person can mend."""


class DcjaxError(Exception):
  """A mistake in the input that one line can explain.

  The text says what is wrong and what would be accepted. `main` prints it and
  exits with code 2; Python callers can catch it.
  """
