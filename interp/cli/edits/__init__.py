"""Commands of ``interp edit``, one method a file."""
