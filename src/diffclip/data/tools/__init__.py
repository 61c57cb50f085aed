"""`diffclip data`: verify, pack, show."""
