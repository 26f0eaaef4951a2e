"""How commands show things in a terminal: one file per subject. Plain lines in a pipe, live tables on a screen."""
