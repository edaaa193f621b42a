//! Arguments for encrypted connections.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use stillmirror_receiver::Authorities;

use crate::path_args;

#[derive(Args)]
pub(crate) struct TlsArgs {
    /// With stillmirrors://, trust only certificates that an authority in this file has signed (PEM) [default: the
    /// authorities of this host]
    #[arg(long, value_name = "FILE", value_parser = path_args::local())]
    pub(crate) ca_file: Option<PathBuf>,
}

impl TlsArgs {
    /// Returns whom to trust.
    pub(crate) fn authorities(&self) -> Arc<Authorities> {
        Arc::new(Authorities::new(self.ca_file.clone()))
    }
}
