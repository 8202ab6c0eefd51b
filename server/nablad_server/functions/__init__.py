"""Functions: what can be differentiated, and how it is found."""
