"""One script per measured claim; each prints its table."""
