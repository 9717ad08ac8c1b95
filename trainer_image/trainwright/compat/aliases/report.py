"""``trainwright.report``: the :class:`Reporter` for a custom training loop."""

from trainwright.integrations.reporter import Reporter as Reporter
