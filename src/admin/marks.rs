//! Saves the freshness marks that moved, every few seconds and once more at the end; and ends old credentials of
//! devices that have used their new ones.

use std::sync::Arc;
use std::time::Duration;

use super::AdminError;
use super::api::Plane;
use super::door::{Stopping, stopped};
use crate::identity::Steady;
use crate::registry::{Mark, Registry, RegistryError};

/// Runs until the control plane stops, then saves what is left.
pub(super) async fn keep(
    plane: &Plane,
    every: Duration,
    stopping: Stopping,
) -> Result<(), AdminError> {
    let mut unretired = false;
    // What is retired is refused for ever.
    let clock = Steady::start();
    loop {
        duet_telemetry::upkeep();
        let stop = tokio::time::timeout(every, stopped(stopping.clone())).await.is_ok();
        let registry = Arc::clone(&plane.registry);
        // The disk may take its time; requests go on meanwhile.
        let saved = tokio::task::spawn_blocking(move || save(&registry)).await;
        let saved = saved.map_err(|_| AdminError::Panicked)?;
        let before = plane.telemetry.marks_failed();
        match &saved {
            Err(error) if !before => tracing::error!(
                "freshness marks cannot be saved: {error}; until they are, a gateway that is killed asks devices anew"
            ),
            Ok(_) if before => tracing::info!("freshness marks are saved again"),
            _ => {}
        }
        plane.telemetry.marks_saved(saved.as_ref().ok().copied());
        let (registry, gateway) = (Arc::clone(&plane.registry), Arc::clone(&plane.gateway));
        let now_s = clock.now_s();
        // So may shards that have no room for mail.
        let retire = move || {
            let ids = registry.retire(now_s)?;
            ids.into_iter().for_each(|id| gateway.revoked(id));
            Ok::<_, RegistryError>(())
        };
        let retired = tokio::task::spawn_blocking(retire).await;
        match retired.map_err(|_| AdminError::Panicked)? {
            Ok(()) => unretired = false,
            // It is tried again the next time, and the old credential's end holds meanwhile.
            Err(error) if !unretired => {
                unretired = true;
                tracing::warn!("a renewed device's old credential is still good: {error}");
            }
            Err(_) => {}
        }
        if stop {
            return saved.map(drop).map_err(AdminError::Marks);
        }
    }
}

/// Saves the marks that moved; those that could not be saved stay queued.
fn save(registry: &Registry) -> Result<usize, RegistryError> {
    // Also when there is nothing to save: nobody else looks before the next change.
    registry.in_place()?;
    let view = registry.view()?;
    let moved = view.take_moved();
    if moved.is_empty() {
        return Ok(0);
    }
    match registry.save_marks(moved.iter().map(|device| Mark::from(&**device))) {
        Ok(()) => Ok(moved.len()),
        Err(error) => {
            view.put_back(moved);
            Err(error)
        }
    }
}
