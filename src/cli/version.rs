//! What this program is: its version, the commit it was built from, and what it computes with on this machine.

use std::sync::OnceLock;

use duet_aead::Gcm;
use duet_curve::Backend;

/// The commit that this was built from.
const COMMIT: &str = env!("DUET_COMMIT");

/// One line, for `-V`.
pub(super) fn short() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("DUET_COMMIT"), ")")
}

/// For `--version`. The backends are those that a gateway would use here, environment included.
pub(super) fn long() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let curve = Backend::select().map_or_else(|error| error.to_string(), |it| it.name().into());
        let aead = Gcm::select().map_or_else(|error| error.to_string(), |it| it.backend().name().into());
        let version = env!("CARGO_PKG_VERSION");
        let demo = if cfg!(feature = "demo") { "with" } else { "without" };
        format!("{version}\ncommit    {COMMIT}\ncurve     {curve}\nAES-GCM   {aead}\nbuilt     {demo} the demo")
    })
}
