"""Where a run's news goes: a command, a webhook, a textfile for node_exporter. Processes of their own.

The supervisor starts them by name (launch/supervise/news.py): whatever happens to them, the job goes on.
"""
