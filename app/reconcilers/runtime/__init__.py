"""What all reconcilers share: the loop, leased workers, informers, leader election, and the list of what runs."""
