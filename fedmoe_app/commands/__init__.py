"""Commands of the command line that look and explain; ``fedmoe_app/cli.py`` registers them."""
