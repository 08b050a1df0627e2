"""What learners share: minibatches, returns, data-parallel all-reduce."""
