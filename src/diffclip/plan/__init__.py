"""What a training run would take: work, memory, time, cost, before anything is rented."""
