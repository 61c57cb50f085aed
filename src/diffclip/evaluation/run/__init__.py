"""Every task of every data set with every model: the plan, the loop, what is shown meanwhile."""
