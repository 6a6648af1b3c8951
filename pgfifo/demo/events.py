"""Webhook events of a shop system, made up, the same ones for the same seed."""

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

DELIVER, INDEX = "deliver", "index"
LIMITS = {DELIVER: 1, INDEX: 3}
"""Slots per customer, by action."""

_NAMES = (
    "acme-outdoor alpine-sports aurora-books bakers-dozen bluebird-toys brightside-optics cedar-and-oak "
    "clockwork-cafe copper-kettle corner-cycles daylight-solar delta-drones evergreen-farms fablecraft "
    "foxglove-florist glasshouse-studio granite-gear harbor-fish ironwood-tools juniper-spices "
    "kestrel-audio lantern-press lighthouse-games maple-street-shoes meadow-dairy moonrise-yoga "
    "northwind-traders nutmeg-bakery old-mill-paper paperplane-post pebble-watches quarry-ceramics "
    "red-barn-antiques riverbend-kayaks saffron-kitchen silverline-optic stonebridge-wines "
    "thimble-and-thread tidewater-surf willow-candles"
)
CUSTOMERS = tuple(_NAMES.split())
"""Forty customers; the first ones have the most events."""

# A few have most of the events, as everywhere.
_WEIGHTS = tuple(accumulate(1 / (place + 3) for place in range(len(CUSTOMERS))))
_KINDS = ("order.created", "order.paid", "order.shipped", "invoice.paid", "refund.issued", "stock.low")
_DELIVERED = 0.6


def events(producer: int, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a producer, each with its action.

    Args:
        producer: its number; each has events of its own.
        count: how many.
    """
    chance = random.Random(f"pgfifo {producer}")  # noqa: S311 - nobody's secret
    for number in range(1, count + 1):
        (customer,) = chance.choices(CUSTOMERS, cum_weights=_WEIGHTS)
        order = chance.randrange(10_000, 99_999)
        cents = chance.randrange(500, 50_000)
        yield (
            DELIVER if chance.random() < _DELIVERED else INDEX,
            {
                "id": f"evt_{producer}{number:05d}",
                "event": chance.choice(_KINDS),
                "customer": customer,
                "url": f"https://hooks.{customer}.example/v2/events",
                "data": {
                    "order": order,
                    "total": cents / 100,
                    "currency": "EUR",
                    "items": chance.randrange(1, 9),
                },
            },
        )
