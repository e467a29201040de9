"""Does what is in the topics and in the database keep what the contract promises? From the outside, read-only.

It checks the worker, so it shares none of its judgement: no decode, no plan, no stored answers, only the names on the
wire, the envelope and the settings. Everything is compared as it stands, up to a point fixed at the start: workers may
run meanwhile, logs may have been trimmed, a topic made anew. What can't be checked any more is counted, never found wrong.
"""

from worker.verification.report import FINDINGS, Finding, FindingName, Report
from worker.verification.verify import verify

__all__ = ["FINDINGS", "Finding", "FindingName", "Report", "verify"]
