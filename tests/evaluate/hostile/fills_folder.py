"""Writes into its folder until it is full: many files, big ones, and holes."""


def answer(canary, port):
    written = 0
    for size in (1 << 20, 1):
        for number in range(100_000):
            try:
                with open(f"{size}-{number}", "wb") as file:
                    written += file.write(b"x" * size)
            except OSError:
                break
    try:
        with open(f"{1 << 20}-0", "r+b") as file:
            file.truncate(1 << 50)
    except OSError:
        pass
    return f"{written >> 20} MiB"
