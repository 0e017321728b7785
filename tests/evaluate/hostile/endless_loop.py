"""Never answers, using the processor, and catches whatever would stop it."""


def answer(canary, port):
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue
