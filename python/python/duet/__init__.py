"""Duet's device: readings to an edge aggregation gateway, stored before they are confirmed.

    from duet import Device

    with Device.from_file("boiler-1.json") as device:
        device.send(1, b"21.5")
"""

from ._duet import Confirmed, Device, DuetError, DuetTimeout

__all__ = ["Confirmed", "Device", "DuetError", "DuetTimeout"]
