"""``trainwright.report``: the :class:`Reporter` for a loop of one's own."""

from trainwright.integrations.reporter import Reporter as Reporter
