"""Where functions come from: each module loads one kind of source."""
