"""Records in Redis: dead letters, the review list, counts of outcomes and the state of queues."""
