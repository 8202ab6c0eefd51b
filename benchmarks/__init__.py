"""The benchmark of nablad: claims about its speed and robustness, each measured beside its floor in the same run."""
