"""Takes memory until there is none, then takes it again in small pieces."""

kept = []


def answer(canary, port):
    size = 1 << 26
    while size > 1 << 10:
        try:
            kept.append(b"x" * size)
        except MemoryError:
            size //= 2
    return f"{sum(map(len, kept)) >> 20} MiB"
