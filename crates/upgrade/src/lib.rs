//! Moving a cluster from one version to the next: today the control record's rules and the inventory; later plan and executor.
