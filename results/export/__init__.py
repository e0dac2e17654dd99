"""The export of a network to formats that others load."""
