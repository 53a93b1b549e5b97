"""Networks in the forms that other runtimes load: one file per form."""
