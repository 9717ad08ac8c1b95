"""The operator in a cluster: watches, cache, queue, API client, lease, and the endpoint that trainers push to."""
