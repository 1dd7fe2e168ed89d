//! `karri.v1.Storage` over gRPC: messages in and out of [`Host`].

use std::sync::Arc;

use karri_base::id::{AccountId, VolumeId};
use karri_base::proto::storage_server::{Storage, StorageServer};
use karri_base::proto::{
    CreateVolumeRequest, DescribeVolumesRequest, Export, ExportVolumeRequest, S3Object, UnexportVolumeRequest, Volume,
    VolumeDeleted, VolumeRequest, Volumes,
};
use tonic::{Request, Response, Status};

use super::host::{Exported, Host};
use crate::error::Error;
use crate::store::NewVolume;
use crate::store::record::{Source, Volume as VolumeRecord};

pub(super) struct Service {
    pub(super) host: Arc<Host>,
}

impl Service {
    pub(super) fn server(host: Arc<Host>) -> StorageServer<Self> {
        StorageServer::new(Self { host })
    }

    async fn message(&self, name: &str, volume: &VolumeRecord) -> Result<Volume, Error> {
        Ok(Volume {
            volume_id: name.to_owned(),
            size_bytes: volume.size,
            allocated_bytes: self.host.allocated(name, volume).await?,
            export: self.host.exported(name).map(export_message),
            account_id: volume.account.clone(),
        })
    }
}

fn export_message(export: Exported) -> Export {
    Export { vhost_user_socket: export.socket.to_string_lossy().into_owned(), generation: export.generation }
}

fn volume_id(text: &str) -> Result<String, Status> {
    text.parse::<VolumeId>().map(String::from).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// Runs a command to its end whether its caller waits or not: cut off in the middle (a deadline, a lost connection) it would
/// leave a half-made copy or a volume that is neither open nor closed. A repeat waits for it by the volume's turn.
async fn apart<T: Send + 'static>(
    command: &'static str,
    volume: &str,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome.map_err(refuse(command, volume)),
        Err(e) => Err(Status::internal(format!("{command} {volume} ended unexpectedly: {e}"))),
    }
}

/// What the client sees; what is our own trouble is logged here too.
fn refuse(command: &'static str, volume: &str) -> impl FnOnce(Error) -> Status {
    let volume = volume.to_owned();
    move |e| {
        let status = e.status();
        if matches!(status.code(), tonic::Code::Internal | tonic::Code::DataLoss) {
            tracing::error!(command, volume, error = e.chain(), "a command failed");
        }
        status
    }
}

#[tonic::async_trait]
impl Storage for Service {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let r = request.into_inner();
        let name = volume_id(&r.volume_id)?;
        let account: AccountId = r.account_id.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
        let source = r.from_s3.filter(|o| *o != S3Object::default()).map(|o| Source {
            bucket: o.bucket,
            key: o.key,
            etag: o.etag.trim_matches('"').to_owned(),
        });
        let new = NewVolume { name: name.clone(), size: r.size_bytes, account: account.into(), source };
        let host = self.host.clone();
        let volume = apart("CreateVolume", &name, async move { host.create(new).await }).await?;
        self.message(&name, &volume).await.map(Response::new).map_err(refuse("CreateVolume", &name))
    }

    async fn delete_volume(&self, request: Request<VolumeRequest>) -> Result<Response<VolumeDeleted>, Status> {
        let name = volume_id(&request.into_inner().volume_id)?;
        let (host, volume) = (self.host.clone(), name.clone());
        apart("DeleteVolume", &name, async move { host.delete(&volume).await }).await?;
        Ok(Response::new(VolumeDeleted {}))
    }

    async fn describe_volumes(&self, request: Request<DescribeVolumesRequest>) -> Result<Response<Volumes>, Status> {
        let names = request.into_inner().volume_ids;
        let found = self.host.describe(&names).await.map_err(refuse("DescribeVolumes", ""))?;
        let mut volumes = Vec::with_capacity(found.len());
        for (name, volume) in &found {
            volumes.push(self.message(name, volume).await.map_err(refuse("DescribeVolumes", name))?);
        }
        let largest_bytes = self.host.usage().await.map_err(refuse("DescribeVolumes", ""))?.total;
        Ok(Response::new(Volumes { volumes, largest_bytes }))
    }

    async fn export_volume(&self, request: Request<ExportVolumeRequest>) -> Result<Response<Export>, Status> {
        let r = request.into_inner();
        let name = volume_id(&r.volume_id)?;
        let (host, volume) = (self.host.clone(), name.clone());
        let exported =
            apart("ExportVolume", &name, async move { host.export(&volume, r.generation, r.read_only).await }).await?;
        Ok(Response::new(export_message(exported)))
    }

    async fn unexport_volume(
        &self,
        request: Request<UnexportVolumeRequest>,
    ) -> Result<Response<VolumeDeleted>, Status> {
        let r = request.into_inner();
        let name = volume_id(&r.volume_id)?;
        let (host, volume) = (self.host.clone(), name.clone());
        apart("UnexportVolume", &name, async move { host.unexport(&volume, r.generation).await }).await?;
        Ok(Response::new(VolumeDeleted {}))
    }
}
