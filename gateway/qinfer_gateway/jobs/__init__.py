"""Asynchronous jobs in a gateway: running them, telling of their ends, and what people see of them."""
