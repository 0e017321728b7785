"""Sleeps before it has defined anything."""

import time

time.sleep(10_000)
