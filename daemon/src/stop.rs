//! Being told to stop: a flag that tasks wait for beside their work.

use tokio::sync::watch;

/// Ends when the flag is raised, or when nobody is left who could raise it.
pub async fn told(flag: &watch::Receiver<bool>) {
    let mut flag = flag.clone();
    // The error says that the sender is gone, which means the same.
    let _ = flag.wait_for(|stop| *stop).await;
}
