"""Text for people: names that were meant, lists, durations, numbers in percent."""
