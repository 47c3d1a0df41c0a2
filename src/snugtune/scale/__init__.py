"""More than one fit, process or machine."""
