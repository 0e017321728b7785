"""Catches everything, raises it again, and answers all the same."""


def answer(canary, port):
    try:
        try:
            raise SystemExit(0)
        except BaseException as error:
            raise GeneratorExit from error
    finally:
        return True  # noqa: B012
