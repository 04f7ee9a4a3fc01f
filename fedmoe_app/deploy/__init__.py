"""Deployment on several machines: certificates and keys, registration of nodes, health."""
