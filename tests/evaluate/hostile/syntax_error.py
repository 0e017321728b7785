"""Is no program. (Kept as text: a file that does not parse could not be formatted.)"""

exec("def answer(canary, port) return True")
