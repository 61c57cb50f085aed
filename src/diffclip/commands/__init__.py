"""The commands of `diffclip`, one file each: arguments, call, what is printed. Importing one imports no torch."""
