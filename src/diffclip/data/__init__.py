"""From files, or from nothing, to tokens and pixels."""
